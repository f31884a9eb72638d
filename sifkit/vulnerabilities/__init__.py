"""A lock against a database of known vulnerabilities: `osv` judges, `database` reads, `locks` finds, `report` says."""
