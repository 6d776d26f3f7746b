//! What one connection remembers of backends that have failed it.

use std::sync::{Arc, Weak};

use super::backend::Backend;

/// Backends that have failed one connection, which tries them again when no other will do. Nobody else learns of it.
#[derive(Clone, Debug, Default)]
pub struct Avoided(Vec<Weak<Backend>>);

impl Avoided {
    /// From now on another is preferred.
    pub fn add(&mut self, backend: &Arc<Backend>) {
        if !self.has(backend) {
            self.0.push(Arc::downgrade(backend));
        }
    }

    /// Whether this one has failed before.
    pub fn has(&self, backend: &Arc<Backend>) -> bool {
        self.0.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(backend)))
    }
}
