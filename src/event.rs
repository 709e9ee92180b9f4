//! What travels: names, subjects, ids and headers, valid by construction.
//!
//! Nothing here does I/O or reads a clock. The rules are a contract: whoever publishes or subscribes
//! beside Hookbridge relies on every one of them.

pub mod cloud_event;
pub mod headers;
pub mod id;
pub mod json;
pub mod name;
pub mod place;
pub mod request;
pub mod subject;
pub mod trace;
pub mod url_prefix;

pub use headers::Headers;
pub use name::Name;
pub use place::{Place, Places};
pub use request::Request;
pub use url_prefix::UrlPrefix;
