"""Training of `mini`: photographs and drawings, their captions, the teacher, the student, and the loop."""
