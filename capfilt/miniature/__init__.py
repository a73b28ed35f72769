"""A small world and the web around it, where it is known which caption is true."""
