"""The processes of one launch. Importing this package loads no torch: launchers are looked at first."""
