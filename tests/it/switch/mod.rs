//! `routing = "session"`: one client over as many servers as its sessions live on.

mod model;
