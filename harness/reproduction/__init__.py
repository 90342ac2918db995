"""The paper's figures and tables: their runs, how to make and find them, and their pages."""
