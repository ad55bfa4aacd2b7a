"""Detail flow: from a soft volume and a little noise to a sharp one."""
