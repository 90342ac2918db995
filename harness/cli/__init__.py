"""The command line: options, errors, names that a user types, tables in the terminal."""
