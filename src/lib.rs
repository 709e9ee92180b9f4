//! x
pub mod clock;
pub mod config;
pub mod event;
mod lifecycle;
pub mod secret;
pub mod signature;
