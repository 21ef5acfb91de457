"""A deployment on several hosts, which are network namespaces with a cable each: `python -m tests.ring.hosts`."""
