"""What a canvas can do to a text: fill it, change it in place, decide about it; tasks made of plain texts."""
