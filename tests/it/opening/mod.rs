//! Openings: from the first frame to the one that names a session, and the move to its home.

mod frames;
mod learned;
mod moves;
mod policy;
mod scouts;
