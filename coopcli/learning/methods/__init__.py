"""Ways to learn a classifier from a few images other than by a prompt; each module's `learn` turns a Task into a Head."""
