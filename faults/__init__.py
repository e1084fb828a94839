"""What goes wrong outside of the program, made to happen on purpose."""
