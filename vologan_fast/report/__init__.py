"""Reports for people: the pictures of a run, the report of a data set, and metrics of translations."""
