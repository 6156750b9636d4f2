"""The live page: the answer of a query on loopback, as a page and as JSON."""
