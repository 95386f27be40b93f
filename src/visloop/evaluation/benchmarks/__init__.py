"""Official scoring rules of the eleven public benchmarks as pure functions, and their scores with intervals."""
