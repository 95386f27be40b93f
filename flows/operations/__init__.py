"""What keeps the flows running by themselves: servers, worker, deployments, their state, and runs that a crash left open."""
