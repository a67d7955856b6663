"""What each command does, a file each: calls of the library, and what is printed. ``run`` takes the options and returns the exit code."""
