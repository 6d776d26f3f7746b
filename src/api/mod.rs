//! The admin API over HTTP: who may use it, what it answers, and the status page.

pub mod status;
mod guard;
mod page;
pub mod admin;
