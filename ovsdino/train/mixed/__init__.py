"""Training on pixel labels of several data sets, pictures with a word, a teacher's classes and drawn edges together."""
