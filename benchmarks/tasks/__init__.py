"""One measured job a file: its cases, who takes part, and what it must show."""
