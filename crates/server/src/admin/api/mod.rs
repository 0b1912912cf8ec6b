//! The admin API: what an operator sees and does, as JSON.

pub mod model;
