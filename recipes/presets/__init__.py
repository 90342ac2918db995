"""Settings of the recipes: functions that return whole configs. A preset imports no recipe, and no recipe another."""
