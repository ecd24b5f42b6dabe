"""Sources of tasks, one file each."""
