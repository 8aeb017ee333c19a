"""Reports for people: the pictures of a run, and the report of a data set."""
