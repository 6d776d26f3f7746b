//! Reloads: everything may change while connections live on, and a bad file changes nothing.

mod files;
mod fleet;
