//! Training in between.
