"""The commands, one file each; heavy imports live inside the functions."""
