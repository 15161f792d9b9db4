"""03: what famous networks cost, what they know unasked, and how to teach one."""
