"""The update machine: one record, one table, and the shell that carries it out."""
