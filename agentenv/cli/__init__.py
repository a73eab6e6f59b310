"""The command line and where its configuration comes from."""
