//! What reads what nobody vouches for; and every operation on a device in trouble, in a process of its own: a call that fails leaves its
//! error to whoever uses the context next.

mod failures;
mod readers;
