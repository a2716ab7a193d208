"""The command line: parse, build, make one call, show the result. The only part that prints."""
