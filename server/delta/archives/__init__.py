"""Front-end for tar archives: container layers above all. It says how headers, folders and unchanged files follow from
the old archive; what changed within a file is for `server.delta.matching` and the front-ends of models."""
