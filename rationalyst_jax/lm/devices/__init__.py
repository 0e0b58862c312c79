"""Where it runs: meshes and what is divided over them, processes, chips."""
