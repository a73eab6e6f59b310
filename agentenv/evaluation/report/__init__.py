"""A sweep in a browser: one file that holds everything, or a server on this machine for what no file should hold."""
