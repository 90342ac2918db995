"""The paper's figures and tables: what each needs, the runs that give it, and the page that shows it."""
