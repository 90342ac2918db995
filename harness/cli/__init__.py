"""The command line: options, help, errors, names of runs, tables in the terminal."""
