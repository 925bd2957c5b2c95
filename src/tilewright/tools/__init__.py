"""Command line, benchmark, demo, doctor: everything around the compiler that a person runs."""
