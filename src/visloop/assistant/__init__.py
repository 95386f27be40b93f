"""The assistant that writes programs over tools and learns from feedback (CLOVA): programs, planner, reflection, learning."""
