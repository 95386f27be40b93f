"""What people use in a browser. Flows do the work; nothing here is needed by them."""

import flows as flows  # sets the process's environment before anything heavy is imported
