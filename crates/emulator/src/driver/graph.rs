//! Graphs: nodes in an order that respects their dependencies, and their instantiated form.

use super::api::api;
use super::args::Out;
use super::context;
use super::errors::{CUresult, Outcome};
use super::handles::{Handle, Kind, Table, lock};
use super::operation::Operation;
use super::{capture, stream};
use std::sync::{Arc, Mutex};

static GRAPHS: Table<Graph> = Table::new(Kind::Graph);
static EXECUTABLES: Table<Executable> = Table::new(Kind::GraphExec);
/// What a node handle stands for: `CUgraphNodeType` of a node of a live graph.
static NODES: Table<u32> = Table::new(Kind::GraphNode);

const AUTO_FREE: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;
const ALL_FLAGS: u64 = 15;

/// One node. Its dependencies come before it in the list.
#[derive(Debug, Clone)]
pub(super) struct Node {
    handle: Handle,
    operation: Operation,
    /// Places of other nodes.
    pub(super) dependencies: Vec<usize>,
}

impl Node {
    /// A node that no graph has yet.
    pub(super) fn new(operation: Operation, dependencies: Vec<usize>) -> Self {
        Self { handle: 0, operation, dependencies }
    }
}

#[derive(Debug)]
struct Graph {
    nodes: Arc<Vec<Node>>,
}

/// An instantiated graph.
#[derive(Debug)]
struct Executable {
    nodes: Mutex<Arc<Vec<Node>>>,
    flags: u64,
    /// One launch of it at a time, in whatever streams.
    running: Mutex<()>,
}

/// A new graph of these nodes.
pub(super) fn create(mut nodes: Vec<Node>) -> Handle {
    for node in &mut nodes {
        node.handle = NODES.reserve();
        NODES.insert(node.handle, node.operation.node_type());
    }
    let handle = GRAPHS.reserve();
    GRAPHS.insert(handle, Graph { nodes: Arc::new(nodes) });
    handle
}

fn find(graph: Handle) -> Outcome<Arc<Graph>> {
    GRAPHS.get(graph).ok_or(CUresult::INVALID_VALUE)
}

fn find_executable(executable: Handle) -> Outcome<Arc<Executable>> {
    EXECUTABLES.get(executable).ok_or(CUresult::INVALID_VALUE)
}

fn instantiate(out: Out<Handle>, graph: Handle, flags: u64) -> Outcome {
    out.wanted()?;
    let graph = find(graph)?;
    context::current()?;
    if flags & !ALL_FLAGS != 0 || (flags & DEVICE_LAUNCH != 0 && flags & AUTO_FREE != 0) {
        return Err(CUresult::INVALID_VALUE);
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(CUresult::NOT_SUPPORTED);
    }
    let handle = EXECUTABLES.reserve();
    let nodes = Mutex::new(Arc::clone(&graph.nodes));
    EXECUTABLES.insert(handle, Executable { nodes, flags, running: Mutex::new(()) });
    out.set(handle)
}

/// Hand out handles into an array of `count` places, or only say how many there are.
fn hand_out(handles: &[Handle], array: Out<Handle>, count: Out<usize>) -> Outcome {
    if array.is_null() {
        return count.set(handles.len());
    }
    let room = count.get()?;
    for index in 0..room {
        // Places beyond the last node are set to null, as the driver documents.
        array.set_at(index, handles.get(index).copied().unwrap_or(0))?;
        if index >= handles.len() {
            break;
        }
    }
    count.set(handles.len().min(room))
}

/// `CUgraphExecUpdateResult` of putting the nodes of `graph` into `executable`, and the node to blame.
fn update(executable: &Executable, graph: &Graph) -> (u32, Handle) {
    let mut nodes = lock(&executable.nodes);
    if nodes.len() != graph.nodes.len() {
        return (2, 0);
    }
    for (old, new) in nodes.iter().zip(graph.nodes.iter()) {
        if old.dependencies != new.dependencies {
            return (2, new.handle);
        }
        if old.operation.node_type() != new.operation.node_type() {
            return (3, new.handle);
        }
    }
    *nodes = Arc::clone(&graph.nodes);
    (0, 0)
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`, as bytes: flags, upload stream, error node, result.
const PARAMS_ERROR_NODE: usize = 2;
const PARAMS_RESULT: usize = 3;

api! {
    fn cuGraphCreate(graph: Out<Handle>, flags: u32) {
        graph.wanted()?;
        if flags != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        graph.set(create(Vec::new()))
    }

    fn cuGraphClone(clone: Out<Handle>, original: Handle) {
        clone.wanted()?;
        let nodes = find(original)?.nodes.as_ref().clone();
        clone.set(create(nodes))
    }

    fn cuGraphDestroy(graph: Handle) {
        let graph = GRAPHS.remove(graph).ok_or(CUresult::INVALID_VALUE)?;
        for node in graph.nodes.iter() {
            NODES.remove(node.handle);
        }
        Ok(())
    }

    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        count.wanted()?;
        let handles: Vec<Handle> = find(graph)?.nodes.iter().map(|node| node.handle).collect();
        hand_out(&handles, nodes, count)
    }

    fn cuGraphGetRootNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        count.wanted()?;
        let graph = find(graph)?;
        let roots = graph.nodes.iter().filter(|node| node.dependencies.is_empty());
        hand_out(&roots.map(|node| node.handle).collect::<Vec<_>>(), nodes, count)
    }

    fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) {
        kind.set(*NODES.get(node).ok_or(CUresult::INVALID_VALUE)?)
    }

    fn cuGraphInstantiateWithFlags(executable: Out<Handle>, graph: Handle, flags: u64) {
        instantiate(executable, graph, flags)
    }

    fn cuGraphInstantiate_v2(
        executable: Out<Handle>,
        graph: Handle,
        error_node: Out<Handle>,
        _log: usize,
        _log_bytes: usize,
    ) {
        error_node.set_if_wanted(0);
        instantiate(executable, graph, 0)
    }

    fn cuGraphInstantiateWithParams(executable: Out<Handle>, graph: Handle, parameters: Out<u64>) {
        let flags = parameters.get()?;
        let outcome = instantiate(executable, graph, flags);
        parameters.set_at(PARAMS_ERROR_NODE, 0)?;
        parameters.set_at(PARAMS_RESULT, u64::from(outcome.is_err()))?;
        outcome
    }

    fn cuGraphExecGetFlags(executable: Handle, flags: Out<u64>) {
        flags.set(find_executable(executable)?.flags)
    }

    fn cuGraphExecDestroy(executable: Handle) {
        EXECUTABLES.remove(executable).map(drop).ok_or(CUresult::INVALID_VALUE)
    }

    fn cuGraphExecUpdate(executable: Handle, graph: Handle, error_node: Out<Handle>, result: Out<u32>) {
        result.wanted()?;
        let (code, node) = update(&*find_executable(executable)?, &*find(graph)?);
        error_node.set_if_wanted(node);
        result.set(code)?;
        if code == 0 { Ok(()) } else { Err(CUresult::GRAPH_EXEC_UPDATE_FAILURE) }
    }

    fn cuGraphExecUpdate_v2(executable: Handle, graph: Handle, result: Out<u64>) {
        result.wanted()?;
        let (code, node) = update(&*find_executable(executable)?, &*find(graph)?);
        result.set(u64::from(code))?;
        result.set_at(1, node as u64)?;
        result.set_at(2, 0)?;
        if code == 0 { Ok(()) } else { Err(CUresult::GRAPH_EXEC_UPDATE_FAILURE) }
    }

    fn cuGraphUpload(executable: Handle, stream: Handle) {
        find_executable(executable)?;
        let (_, stream) = stream::find_any(stream)?;
        capture::forbid_on_stream(&stream)
    }

    fn cuGraphLaunch(executable: Handle, stream: Handle) {
        let executable = find_executable(executable)?;
        let (context, stream) = stream::find_any(stream)?;
        let nodes = Arc::clone(&lock(&executable.nodes));
        // While capturing, the launched graph's nodes join the graph under construction one after the other.
        if nodes.is_empty() {
            return Ok(());
        }
        if capture::append(&stream, &nodes[0].operation)? {
            for node in &nodes[1..] {
                capture::append(&stream, &node.operation)?;
            }
            return Ok(());
        }
        let _alone = lock(&executable.running);
        stream.in_order(&context, || {
            for node in nodes.iter() {
                context.check()?;
                if let Err(code) = node.operation.run(&context) {
                    // What a call would have refused can only be found on the device here.
                    let code = if code == CUresult::INVALID_VALUE { CUresult::ILLEGAL_ADDRESS } else { code };
                    context.fail(code, format!("a node of a graph failed with {code}: {:?}", node.operation));
                }
            }
            Ok(())
        })
    }
}
