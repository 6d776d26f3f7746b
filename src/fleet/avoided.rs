//! The backends that have failed one connection.

use std::sync::{Arc, Weak};

use super::backend::Backend;

/// Backends that have failed one connection, which tries them again only when no other will do. Other connections are not
/// affected.
#[derive(Clone, Debug, Default)]
pub struct Avoided(Vec<Weak<Backend>>);

impl Avoided {
    /// From now on others are preferred to it.
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
