"""What a user meets first: options that every command has, the order of the help, shell completion, what comes next."""
