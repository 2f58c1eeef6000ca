//! Profiler marks: accepted, since the counters run all the time.

use super::api::api;
use super::context;

api! {
    fn cuProfilerStart() {
        context::current().map(drop)
    }

    fn cuProfilerStop() {
        context::current().map(drop)
    }
}
