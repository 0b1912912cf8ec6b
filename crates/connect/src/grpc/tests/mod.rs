use super::*;

mod streams;
mod unary;
