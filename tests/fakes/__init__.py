"""Stand-ins for libraries that this machine may lack, one module or package per library."""
