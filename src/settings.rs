//! The settings of one invocation.

mod choices;

pub use choices::{IoMode, Prefetch, Strategy};
