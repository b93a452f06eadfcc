"""Stand-ins for libraries that are not here, one module a library."""
