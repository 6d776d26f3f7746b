//! How processes of one service talk to each other when one follows another, and how older ones are asked.

mod channel;
mod old_process_status;
mod old_processes;

pub use channel::{Channel, DETACH, FOLLOW, Greeting, Named, STAGE, Seen};
pub use old_process_status::{OldProcessBackend, OldProcessStatus};
pub use old_processes::{OldProcesses, StartedWith, go_ahead};
