//! What a process is made of: its threads, descriptors, memory, log lines, and the signals that end connections.

pub mod jitter;
pub mod logs;
pub mod stop_flag;
pub mod account;
pub mod workers;
pub mod shutdown;
pub mod descriptors;
