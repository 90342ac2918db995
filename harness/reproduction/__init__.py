"""The paper's figures and tables: the runs that each needs, how they are made and found, and its page."""
